"""As many workers as the load needs: settings, policy, measuring, and the loop that acts."""
