"""Where training data comes from: bundled sets that need no network, and the baselines that give numbers a meaning."""
