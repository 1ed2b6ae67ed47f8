"""What is inside a guest, and what would keep it from booting on KVM. Nothing is changed."""
