"""Both stages: the only room that knows encoders and recommenders."""
