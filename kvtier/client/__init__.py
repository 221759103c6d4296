"""What a worker or an operator links against."""
