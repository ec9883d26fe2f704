"""Image files, in and out: slices of TIFF, PNG, JPEG and BMP, whatever program wrote them."""
