"""Ways to multiply by a Hessian; each is one file, `dynaxx.numerics.hessian` chooses among them and checks them."""
