"""Do the papers' claims hold on PhantomCT? One protocol, one runner, one page.

`rows.py` says what is compared, `ground.py` makes what all runs share, `run.py` trains and writes reports, `measure.py`
scores them, `collect.py` puts seeds, floors and verdicts together, `page.py` and `figures.py` show them.

    make claims                 one row on three seeds, and what the whole grid costs
    make claims ROWS=everything       the grid; a killed one continues
"""
