"""The engine: Unicorn 2.1.4 from its source distribution, our patches and our C files."""
