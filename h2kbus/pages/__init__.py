"""The page as it is served: built from `web/` by `make web`, not written by hand."""
