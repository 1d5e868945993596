"""The command line. Client commands speak to the REST API only and import nothing heavy."""
