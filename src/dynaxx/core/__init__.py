"""The vocabulary: events, records, contracts, parameters by layer, isolation and the Task."""
