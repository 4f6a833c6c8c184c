"""Δ-Space Weight Merge: the increments of a distilled and of aligned models, added to their base.

θ = θ_base + λ_d (θ_distilled - θ_base) + Σ_k λ_k Δ_k, in fp32, rounded once (CLVR, section 3.4, eq. 6)."""
