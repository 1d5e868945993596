"""The front end: OpenAI-compatible inference, admin routes, and the routing of requests to engines.

Text lives here and only here: engines take token ids and give token ids. The warm path touches neither
Postgres nor Temporal; both are needed only to start a model that is not running.
"""
