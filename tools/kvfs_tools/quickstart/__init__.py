"""The quickstart: replay a real trace onto a mount the way vLLM does, kill it half-way, verify, look for plaintext."""
