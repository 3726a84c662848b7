"""What fuzzing throws at the server, and what has to hold whatever that is."""
