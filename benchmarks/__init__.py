"""What is measured beside other tools; `h2kbus bench` measures the bus by itself."""
