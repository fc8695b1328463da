"""`python -m upft.compare A B`: the paired comparison of two evaluated cells; the work is in `scoreboard`.

Top floor. Run, never imported: in Python `upft.compare` is the library's function, which an import would hide.
"""

from upft.scoreboard import main

if __name__ == "__main__":
    main()
