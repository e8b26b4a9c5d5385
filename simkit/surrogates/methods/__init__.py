"""How models are rolled out: one integration method per file; `simkit.surrogates.rollout` chooses among them."""
