"""What the other packages build on: argument checks, files, precision, devices, reports and plotting style."""
