"""Surrogates of dynamics: systems that are known, models that learn them from trajectories, and how good they are.

- `simkit.surrogates.systems`: known systems, which make data;
- `simkit.surrogates.trajectories`: the data, and `simkit.surrogates.loaders` for data from elsewhere;
- `simkit.surrogates.models`: models of motion by name, and `simkit.surrogates.files` to keep them;
- `simkit.surrogates.rollout`: their motion, by methods that suit their structure, and `simkit.surrogates.compiled` for many trajectories.
"""
