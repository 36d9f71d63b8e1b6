"""The whole of Celora on one machine: embedded Postgres, a folder as broker, and all processes."""
