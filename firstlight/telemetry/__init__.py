"""What a process tells of itself: log lines with the ids they concern, spans of traces that cross roles.

Knows nothing of HTTP, gRPC or Temporal: those who speak them carry the ids and the trace across.
"""
