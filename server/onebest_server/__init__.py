"""The server: speech recognition over websockets. Nothing here yet; the name is reserved."""
