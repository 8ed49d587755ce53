"""The separation network and its signal processing; knows neither Beam nor manifests."""
