"""What is sent to start a worker: stage 0, the loader and the bundle. Shipped code is handled here, never imported."""
