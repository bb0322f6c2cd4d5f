"""What trains several runs: fleets, their budget, and the plan that follows."""
