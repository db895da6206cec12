"""The REST API: Flask with an OpenAPI layer, under waitress."""
