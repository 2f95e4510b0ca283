"""Routing other libraries' attention through this package; each module here imports the library it is named after."""
