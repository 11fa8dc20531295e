//! Format drivers: what stands inside an image file.
