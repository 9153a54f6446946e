"""The websocket server; it comes with a later release."""
