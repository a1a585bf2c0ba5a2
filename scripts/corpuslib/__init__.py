"""Builds the OCI images that lazo is tested and measured with."""
