"""Operators' routes: deploy, scale, start and delete models; look at hosts, instances and starts."""
