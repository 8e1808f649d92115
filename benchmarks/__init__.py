"""What is measured and checked on a machine with a GPU; results/ keeps the records."""
