"""CLAPSep: the network, its decoder, and the layers that both of its towers share."""
