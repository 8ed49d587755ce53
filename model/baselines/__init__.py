"""The systems that CLAPSep is compared with, behind the same interface."""
