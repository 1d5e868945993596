"""HTTP as ASGI messages: exchanges that notice a client's leaving, and the middleware around them."""
