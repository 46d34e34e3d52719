"""What the server takes and gives, as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0)."""
