"""ssl_jax: is self-supervision by shuffling helpful, and who should choose the shuffles?"""
