"""``fusion-pl data check``: open every row and file of a table, and report what is wrong before anything is trained."""
