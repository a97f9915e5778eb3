"""What stores on S3 cost, beside ordinary clients."""
