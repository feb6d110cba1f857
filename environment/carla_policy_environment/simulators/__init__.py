"""What can be served: each module or package adapts one kind of simulator to `base.Simulator`."""
