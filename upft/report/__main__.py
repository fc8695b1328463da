"""`python -m upft.report SELECTION`: one report on many cells; the work is in `upft.shelf`.

The one file of this room that looks up: it is run, never imported.
"""

from upft.shelf import main

if __name__ == "__main__":
    main()
