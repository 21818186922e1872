"""What training maximises or minimises: one equation, one function, returned as (sum, count)."""
