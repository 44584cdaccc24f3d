"""What can be rented: instance types, images, prices, model sizes, defaults and shipped measurements."""
