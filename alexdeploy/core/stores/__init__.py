"""Object stores and web servers: s3://, gs://, az://, http(s):// and file:// read, listed and written, with retries."""
