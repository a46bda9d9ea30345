"""`python -m jorge`."""

from jorge.cli import main

raise SystemExit(main())
