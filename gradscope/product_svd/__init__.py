"""product_svd."""
