"""What may leave: of each raw event, what the allowlist names, scrubbed of personal data."""
