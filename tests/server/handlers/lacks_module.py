"""Dies while loading: it imports what is not there, which TorchServe reports as another error."""

import module_that_nobody_has


class LacksModule:
    """Never loads."""

    def initialize(self, context):
        """Never called."""
        module_that_nobody_has.load()

    def handle(self, data, context):
        """Never called."""
