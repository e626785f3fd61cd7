"""Long measurements of the whole process: `make soak`. Not collected by `make test`."""
