"""Short looks at the live state that part causes which the log cannot: one file per look."""
