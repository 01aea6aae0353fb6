"""X-PEFT on Ray Serve: engines in replicas, one a device, behind the HTTP interface of ``xpeft serve``."""
