"""What setup.py, the emulator's build and the benchmarks share about building the compiled library."""
